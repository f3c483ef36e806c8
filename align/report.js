// A playhead over each timeline picture; a click in the picture seeks. Without this script the players still play.
for (const side of document.querySelectorAll(".side")) {
  const picture = side.querySelector(".picture"), audio = side.querySelector("audio");
  if (!picture || !audio) continue;
  const head = picture.querySelector(".head");
  const left = Number(picture.dataset.left), right = Number(picture.dataset.right);
  const start = Number(picture.dataset.start), end = Number(picture.dataset.end);
  const show = () => {
    const part = (audio.currentTime - start) / (end - start);
    head.style.display = part >= 0 && part <= 1 ? "block" : "none";
    head.style.left = 100 * (left + part * (right - left)) + "%";
    if (!audio.paused) requestAnimationFrame(show);
  };
  for (const name of ["play", "seeked", "timeupdate"]) audio.addEventListener(name, show);
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
  });
  picture.classList.add("seek");
  picture.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect();
    const part = ((event.clientX - box.left) / box.width - left) / (right - left);
    audio.currentTime = Math.min(Math.max(start + part * (end - start), 0), audio.duration || end);
    audio.play();
  });
}
