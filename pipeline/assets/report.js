// Builds the sliders from the pictures that the page already shows side by side.
function slider(crop) {
  const versions = [...crop.querySelectorAll(".versions img")];
  if (versions.length < 2) return;
  const make = (tag, className) => Object.assign(document.createElement(tag), { className });
  const [width, height] = ["width", "height"].map((side) => versions[0].getAttribute(side));
  const stack = make("div", "stack");
  stack.style.maxWidth = `${3 * width}px`; // beyond that only the pixels grow
  stack.style.aspectRatio = `${width} / ${height}`; // or the page would jump as they load
  const [below, above] = [new Image(), new Image()];
  above.className = "above";
  const [left, right] = [make("span", "tag left"), make("span", "tag right")];
  const range = make("input", "");
  Object.assign(range, { type: "range", min: 0, max: 100, step: 0.5, value: 50 });
  const grip = make("span", "grip");
  grip.textContent = "⇔";
  grip.ariaHidden = "true";
  range.addEventListener("input", () => {
    stack.style.setProperty("--at", `${range.value}%`);
    range.ariaValueText = `${Math.round(range.value)} % ${left.textContent}`;
  });
  stack.append(below, above, left, right, range, grip);

  const choose = make("div", "choose");
  const shown = { Left: 0, Right: versions.length - 2 || 1 };
  const draw = () => {
    const [one, other] = [versions[shown.Left], versions[shown.Right]];
    Object.assign(above, { src: one.src, alt: one.alt });
    Object.assign(below, { src: other.src, alt: other.alt });
    left.textContent = one.dataset.name;
    right.textContent = other.dataset.name;
    range.ariaLabel = `How much of ${left.textContent} covers ${right.textContent}`;
  };
  for (const side of ["Left", "Right"]) {
    const label = make("label", "");
    const select = make("select", "");
    versions.forEach((version, number) => select.add(new Option(version.dataset.name, number)));
    select.value = shown[side];
    select.addEventListener("change", () => {
      shown[side] = Number(select.value);
      draw();
    });
    label.append(side, select);
    choose.append(label);
  }
  draw();
  crop.querySelector(".versions").before(stack, choose);
}

// A task's sliders are made when it is unfolded: a long page opens as fast as a short one.
for (const details of document.querySelectorAll("details.pictures")) {
  const build = () => {
    if (!details.open || details.dataset.built) return;
    details.dataset.built = "yes";
    details.querySelectorAll(".crop").forEach(slider);
  };
  details.addEventListener("toggle", build);
  build();
}

// Paper can't be unfolded. The configs would fill a book, and report.json has them.
const folded = [];
addEventListener("beforeprint", () => {
  folded.push(...document.querySelectorAll("details:not([open], .config)"));
  folded.forEach((details) => (details.open = true));
});
addEventListener("afterprint", () => {
  folded.splice(0).forEach((details) => (details.open = false));
});
