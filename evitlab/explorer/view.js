// A picture that can be clicked and takes arrow keys; it reports the room and the theme it is in.

const KEYS = ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"];
const REPEAT_MS = 1000; // a key that is held waits for the repaint, but not for ever
const STEP_PX = 20; // the picture is drawn anew only where the room changes by this much

function isDark(element) {
  for (let node = element; node; node = node.parentElement) {
    const parts = (getComputedStyle(node).backgroundColor.match(/[\d.]+/g) ?? []).map(Number);
    if (parts.length >= 3 && (parts[3] ?? 1) > 0.5) {
      return 0.299 * parts[0] + 0.587 * parts[1] + 0.114 * parts[2] < 128;
    }
  }
  return false;
}

function render({ model, el }) {
  const picture = document.createElement("img");
  picture.className = "evitlab-view";
  picture.tabIndex = 0;
  picture.draggable = false;
  picture.setAttribute("aria-roledescription", "attention map, arrow keys move the query");
  el.classList.add("evitlab-view-room");
  el.append(picture);

  let url = null;
  let waitingSince = 0;
  const show = () => {
    const bytes = model.get("value");
    if (!bytes || bytes.byteLength === 0) return;
    const next = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
    const previous = url;
    url = next;
    picture.src = next;
    picture.style.width = `${model.get("shown_width")}px`;
    if (previous) URL.revokeObjectURL(previous);
    waitingSince = 0;
  };
  const describe = () => { picture.alt = model.get("description"); };

  picture.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width;
    const y = (event.clientY - box.top) / box.height;
    picture.focus({ preventScroll: true });
    model.send({ kind: "click", x, y });
  });
  picture.addEventListener("keydown", (event) => {
    if (!KEYS.includes(event.key) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation(); // else the notebook moves to another cell
    if (event.repeat && waitingSince && performance.now() - waitingSince < REPEAT_MS) return;
    waitingSince = performance.now();
    model.send({ kind: "key", key: event.key });
  });

  const report = () => {
    const width = Math.floor(el.clientWidth);
    if (width > 0 && Math.abs(width - model.get("room")) >= STEP_PX) model.set("room", width);
    model.set("dark", isDark(el));
    model.set("pixel_ratio", Math.min(2, window.devicePixelRatio || 1));
    model.save_changes();
  };
  const room = new ResizeObserver(report);
  room.observe(el);
  const theme = new MutationObserver(() => setTimeout(report, 100)); // once the style sheet is there
  theme.observe(document.body, { attributes: true });

  const copy = async (message) => {
    if (message.kind !== "copy") return;
    let done = true;
    try {
      await navigator.clipboard.writeText(message.text); // not on a page without https
    } catch {
      done = false;
    }
    model.send({ kind: "copied", done });
  };
  model.on("change:value", show);
  model.on("change:description", describe);
  model.on("msg:custom", copy);
  show();
  describe();
  return () => {
    room.disconnect();
    theme.disconnect();
    model.off("change:value", show);
    model.off("change:description", describe);
    model.off("msg:custom", copy);
    if (url) URL.revokeObjectURL(url);
  };
}

export default { render };
