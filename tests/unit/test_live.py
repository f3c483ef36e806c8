"""A server in another thread, on loopback, that speaks as the Realtime API does; and servers that do not behave."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import threading
import time
from importlib.util import find_spec

import numpy as np
import pytest
from rich.console import Console

pytest.importorskip("websockets")
from websockets.sync.server import serve

from align.evaluation import evaluate
from align.loading import find_scripted
from align.policies.live.agent import Live
from align.policies.live.ledger import Ledger, summary
from align.policies.live.playout import Playout
from align.policies.live.protocols import Moshi, Realtime, Said
from envs.clock import CLOCK
from envs.episode import Episode
from envs.errors import UptakeError
from launch.evaluate import run_evaluation
from tests.packs import tiny_pack

F = CLOCK.frame


class OneRow:
    """All that a live agent asks of an environment."""

    num_envs = 1


@contextlib.contextmanager
def serving(handle):
    with serve(handle, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/v1/realtime"
        finally:
            server.shutdown()
            thread.join()


CREATED = json.dumps({"type": "session.created"})


def listening(connection, *messages):
    """Sends these as soon as it is connected, and never anything again."""
    with contextlib.suppress(Exception):
        for message in messages:
            connection.send(message)
        for _ in connection:
            pass


def answering(connection, after=10, close_after=None):
    """Says half a second of noise and two words after `after` frames; hangs up after `close_after`."""
    connection.send(CREATED)
    with contextlib.suppress(Exception):
        for count, message in enumerate(connection, 1):
            event = json.loads(message)
            assert event["type"] == "input_audio_buffer.append"
            assert len(base64.b64decode(event["audio"])) == 2 * F
            if count == after:
                connection.send(json.dumps({"type": "input_audio_buffer.speech_stopped"}))
                time.sleep(0.05)
                noise = np.random.default_rng(0).integers(-9000, 9000, CLOCK.sample_rate // 2).astype("<i2")
                for piece in (" good", " day"):
                    connection.send(json.dumps({"type": "response.output_audio_transcript.delta", "delta": piece}))
                audio = base64.b64encode(noise.tobytes()).decode()
                connection.send(json.dumps({"type": "response.output_audio.delta", "delta": audio}))
            if count == close_after:
                connection.close()
                return


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return tiny_pack(tmp_path_factory.mktemp("packs"))


def measured(pack, address, frames=25):
    kept = []
    evaluate(
        find_scripted(f"live:{address}"), pack, "test", name="live", variants=1, frames=frames,
        watch=lambda key, episode, words: kept.append(episode),
    )  # fmt: skip
    return kept


def test_a_realtime_server_is_heard_and_measured(pack):
    with serving(answering) as address:
        (episode,) = measured(pack, address)
    loud = np.flatnonzero(np.abs(episode.agent) > 0.01)
    assert loud[0] >= 10 * F, "an answer to frame 9 is not heard before frame 10 is over"
    assert [word.text for word in episode.transcript] == ["good", "day"]
    ledger = episode.meta["latency_ledger"]
    assert ledger["sent_frames"] == 25 and ledger["received_samples"] == CLOCK.sample_rate // 2
    assert ledger["faults"] == {} and ledger["network_ms"]["max"] > 0
    assert ledger["response_ms"]["p50"] > 0
    both = summary([ledger, ledger])
    assert both["sent_frames"] == 50 and both["received_samples"] == CLOCK.sample_rate


def test_a_response_is_measured_once_from_the_end_of_the_turn_that_it_answers():
    ledger = Ledger()
    ledger.heard(1.0, F)
    ledger.owed = 2.0
    ledger.heard(2.25, F)
    ledger.heard(2.5, F)
    found = ledger.figures(F, steady=False)
    assert found["response_ms"] == {"p50": 250.0, "p95": 250.0, "max": 250.0}
    assert found["received_samples"] == 3 * F


def test_a_server_that_hangs_up_midway_leaves_silence_and_is_counted(pack):
    with serving(lambda connection: answering(connection, close_after=12)) as address:
        (episode,) = measured(pack, address)
    ledger = episode.meta["latency_ledger"]
    assert ledger["faults"] == {"closed": 1} and ledger["dropped_frames"] > 0
    assert ledger["sent_frames"] + ledger["dropped_frames"] == 25


def test_a_server_that_is_not_there_is_one_clear_line(pack):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(UptakeError, match=r"no connection .*is the server running") as error:
        measured(pack, f"ws://127.0.0.1:{port}/v1/realtime")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["/api/chat", "/v1/realtime"])
def test_a_server_that_never_greets_is_given_up(pack, path):
    if path == "/api/chat":
        pytest.importorskip("sphn")
    with serving(listening) as address:
        live = Live(address.replace("/v1/realtime", path), patience=0.5)
        with pytest.raises(UptakeError, match=r"no handshake within 0.5 s"):
            evaluate(live, pack, "test", name="live", variants=1, frames=5)


def evaluated(pack, address, out):
    """What `uptake eval` prints; its figures are in `out`."""
    console = Console(record=True, width=200, file=io.StringIO())
    run_evaluation(
        f"live:{address}", str(pack.folder), "test", variants=1, frames=5, seed=1, batch=1, recogniser="", out=out,
        console=console,
    )  # fmt: skip
    return console.export_text()


def test_a_server_that_answers_no_frame_is_one_line_and_no_silent_agent(pack, tmp_path):
    pytest.importorskip("sphn")
    with serving(lambda connection: listening(connection, b"\x00")) as address:
        address = address.replace("/v1/realtime", "/api/chat")
        (episode,) = measured(pack, address, frames=5)
        ledger = episode.meta["latency_ledger"]
        assert ledger["faults"] == {"mute": 1} and ledger["received_samples"] == 0
        with pytest.raises(UptakeError, match=r"sent no sound in 1 conversations \(faults {'mute': 1}\)") as error:
            evaluated(pack, address, tmp_path / "live.json")
    assert "\n" not in str(error.value) and not (tmp_path / "live.json").exists()


def test_a_realtime_server_that_has_nothing_to_say_is_a_silent_agent(pack, tmp_path):
    with serving(lambda connection: listening(connection, CREATED)) as address:
        told = evaluated(pack, address, tmp_path / "live.json")
    assert "measured in real time" in told
    figures = json.loads((tmp_path / "live.json").read_text())["latency_ledger"]
    assert figures["faults"] == {} and figures["received_samples"] == 0 and figures["sent_frames"] == 5


def test_an_address_that_cannot_be_is_one_clear_line():
    for address, message in (
        ("http://127.0.0.1/v1/realtime", "must be a ws://"),
        ("ws://127.0.0.1/other", "must end in /api/chat"),
        ("ws://me:secret@127.0.0.1/v1/realtime", "holds a password"),
        ("ws://127.0.0.1:99999/v1/realtime", "no address .Port out of range"),
        ("ws://127.0.0.1:abc/v1/realtime", "no address .Port could not be cast .* 'abc'"),
        ("ws://me:secret@127.0.0.1:abc/v1/realtime", "no address .Port could not be cast .* 'abc'"),
        (f"ws://{'a' * 70}/v1/realtime", "no address .*label too long"),
        ("ws://[::1/v1/realtime", "no address .Invalid IPv6"),
        ("ws://me:secret@[::1/v1/realtime", "no address .Invalid IPv6"),
    ):
        with pytest.raises(UptakeError, match=message) as error:
            find_scripted(f"live:{address}")
        assert "secret" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        ("foo://me:secret@127.0.0.1:1", "scheme foo isn't supported"),
        ("socks5://me:secret@127.0.0.1:1", "requires python-socks"),
        ("http://me:secret@127.0.0.1:abc", "'abc'"),
        ("http://me:secret@127.0.0.1:1", "Connect call failed"),
    ],
)
def test_a_proxy_that_cannot_be_is_one_clear_line_at_once(monkeypatch, proxy, message):
    if "socks" in proxy and find_spec("python_socks"):
        pytest.skip("it can be used here")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("ws_proxy", "http_proxy"):
        monkeypatch.setenv(name, proxy)
    with pytest.raises(UptakeError, match=rf"no connection .*{message}.* the environment's proxy") as error:
        Live("ws://127.0.0.1:1/v1/realtime", patience=60)(OneRow).reset()
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["sec\nret", "sec ret", "sécret"])
def test_a_key_that_no_header_can_hold_is_not_repeated(monkeypatch, key):
    monkeypatch.setenv("UPTAKE_LIVE_KEY", key)
    with pytest.raises(UptakeError, match="UPTAKE_LIVE_KEY holds") as error:
        Live("ws://127.0.0.1:1/v1/realtime")
    assert "ret" not in str(error.value)


NONSENSE = [
    "", "{", "[1]", "[" * 200_000, '{"type": "response.audio.delta"}', b"", b"\x09", b"\xff\xfe", "text",
    '{"type": "response.audio.delta", "delta": "AAAA", "content_index": Infinity}',
    '{"type": "response.audio.delta", "delta": "AAAA"}',
    '{"type": "response.audio_transcript.delta", "delta": null}',
    '{"type": "response.audio_transcript.delta", "delta": 5}',
]  # fmt: skip


@pytest.mark.parametrize("wire", [Realtime, Moshi])
@pytest.mark.parametrize("message", NONSENSE, ids=[str(number) for number in range(len(NONSENSE))])
def test_nonsense_from_a_server_is_a_fault_and_no_crash(wire, message):
    if wire is Moshi:
        pytest.importorskip("sphn")
    assert wire().read(message).fault == "malformed"


def test_after_nonsense_a_conversation_goes_on(pack):
    with serving(lambda connection: listening(connection, CREATED, *NONSENSE)) as address:
        (episode,) = measured(pack, address, frames=10)
    ledger = episode.meta["latency_ledger"]
    assert ledger["faults"] == {"malformed": len(NONSENSE)} and ledger["dropped_frames"] == 0
    assert episode.transcript == ()


@pytest.mark.parametrize(
    ("end", "fault"),
    [
        (lambda connection: connection.send("a" * (2**24 + 1)), "malformed"),
        (lambda connection: connection.send(b"\xff", text=True), "malformed"),
        (lambda connection: connection.close(), "closed"),
        (lambda connection: connection.socket.shutdown(socket.SHUT_RDWR), "lost"),
    ],
    ids=["too large", "not UTF-8", "closed", "lost"],
)
def test_how_a_conversation_ended_is_told(pack, end, fault):
    def ending(connection):
        with contextlib.suppress(Exception):
            connection.send(CREATED)
            connection.recv()
            end(connection)
            listening(connection)

    with serving(ending) as address:
        (episode,) = measured(pack, address, frames=15)
    ledger = episode.meta["latency_ledger"]
    assert ledger["faults"] == {fault: 1} and ledger["dropped_frames"] > 0


class Panic(BaseException):
    """As libraries in Rust raise it."""


@pytest.mark.parametrize("error", [OverflowError, Panic])
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_nobody_expected_is_a_fault_and_told(pack, monkeypatch, error):
    def read(self, message):
        if message == "what":
            raise error("never\nseen")
        return Said(ready=True)

    def midway(connection):
        with contextlib.suppress(Exception):
            connection.send(CREATED)
            connection.recv()
            listening(connection, "what")

    monkeypatch.setattr(Realtime, "read", read)
    with serving(midway) as address:
        (episode,) = measured(pack, address, frames=15)
    ledger = episode.meta["latency_ledger"]
    assert ledger["faults"] == {"client_error": 1} and ledger["dropped_frames"] > 0
    assert ledger["problem"] == f"the client failed ({error.__name__}: never seen)"
    greeting = serving(lambda connection: listening(connection, "what"))
    with greeting as address, pytest.raises(UptakeError, match="the client failed"):  # at once, whatever the patience
        Live(address, patience=60)(OneRow).reset()


def test_a_frame_that_meets_a_connection_just_ended_is_dropped(monkeypatch):
    with serving(lambda connection: connection.send(CREATED)) as address:
        agent = Live(address)(OneRow)
        agent.reset()
        (call,) = agent._calls
        call._thread.join(10)
    monkeypatch.setattr(call._thread, "is_alive", lambda: True)  # as it may have been when it was asked
    agent.act(np.zeros((1, F), np.float32))
    assert agent.latency_ledger(0)["dropped_frames"] == 1
    monkeypatch.undo()


def test_half_a_surrogate_pair_does_not_reach_the_record(pack, tmp_path):
    delta = '{"type": "response.audio_transcript.delta", "delta": " a\\ud800b"}'
    with serving(lambda connection: listening(connection, CREATED, delta)) as address:
        (episode,) = measured(pack, address, frames=5)
    assert [word.text for word in episode.transcript] == ["a?b"]
    episode.save(tmp_path)
    (tmp_path / "words").write_text(" ".join(word.text for word in Episode.load(tmp_path).transcript))


def test_a_user_who_begins_to_speak_flushes_what_was_not_played():
    assert Realtime().read('{"type": "input_audio_buffer.speech_started"}').flush
    assert Realtime().read('{"type": "error", "error": {}}').fault == "server_error"


def test_what_the_user_cut_is_neither_heard_nor_said_and_the_server_is_told_how_much_was(pack):
    told = []

    def interrupted(connection):
        def say(word, level, item):
            pcm = np.full(CLOCK.sample_rate, level, "<i2")
            common = {"item_id": item, "content_index": 0}
            delta = {"type": "response.output_audio_transcript.delta", "delta": word, **common}
            sound = {"type": "response.output_audio.delta", "delta": base64.b64encode(pcm.tobytes()).decode(), **common}
            for event in (delta, sound):  # faster than it is played, as such servers send it
                connection.send(json.dumps(event))

        connection.send(CREATED)
        with contextlib.suppress(Exception):
            for count, message in enumerate(connection, 1):
                told.append(json.loads(message))
                if count == 4:
                    for word in (" the", " weather", " is"):
                        say(word, 9000, "one")
                if count == 20:
                    connection.send(json.dumps({"type": "input_audio_buffer.speech_started"}))
                    say(" sunny", 9000, "one")  # was on its way
                    say(" Sorry?", 3000, "two")

    with serving(interrupted) as address:
        (episode,) = measured(pack, address, frames=45)
    assert [word.text for word in episode.transcript] == ["the", "weather", "Sorry?"]
    (cut,) = [event for event in told if event["type"] != "input_audio_buffer.append"]
    heard = np.count_nonzero(np.abs(episode.agent) > 0.2)
    assert CLOCK.sample_rate < heard < 2 * CLOCK.sample_rate
    assert cut == {
        "type": "conversation.item.truncate", "item_id": "one", "content_index": 0,
        "audio_end_ms": 1000 * heard // CLOCK.sample_rate,
    }  # fmt: skip
    assert np.count_nonzero(np.abs(episode.agent) > 0.05) == heard + CLOCK.sample_rate


def test_a_cut_is_of_every_utterance_that_waited_and_of_no_other():
    playout, second = Playout(), np.ones(12 * F, np.float32)
    for name in ("said", "begun", "waits"):
        playout.add(second, (name, 0))
        playout.say(f" {name}", (name, 0))
    for frame in range(1, 19):
        assert playout.play(frame).size == F
    assert playout.flush() == {("waits", 0): 0, ("begun", 0): 6 * F}
    assert playout.flush() == {} and playout.play(19).size == 0
    playout.add(second, ("waits", 0))
    playout.add(second, ("", 0))  # a server that names nothing is never taken for one that was cut
    assert playout.flush() == {("", 0): 0} and Realtime().cut({("", 0): 0}) == []
    playout.add(second, ("", 0))
    assert playout.play(20).size == F
    assert [word.text for word in playout.words()] == ["said"]


def test_delays_are_from_the_nth_frame_sent_to_the_nth_frame_heard():
    ledger = Ledger(sent=[0.0, 0.08, 0.16], late=[0.0] * 3, received=[(0.2, F + F // 2), (0.3, F // 2), (0.5, F)])
    assert "mute" not in ledger.figures(F, True)["faults"]
    assert ledger.delays(F) == pytest.approx([0.2, 0.22, 0.34])
    assert ledger.figures(F, True)["delay_ms"]["max"] == pytest.approx(340)
    assert "delay_ms" not in ledger.figures(F, False)
