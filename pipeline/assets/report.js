// Builds the before/after sliders from the pictures that the page already shows.
for (const comparison of document.querySelectorAll(".comparison")) {
  const versions = [...comparison.querySelectorAll(".versions img")];
  if (versions.length < 2) continue;
  const stack = document.createElement("div");
  stack.className = "stack";
  stack.style.maxWidth = `${3 * versions[0].width}px`; // beyond that only the pixels grow
  const [below, above] = [new Image(), new Image()];
  above.className = "above";
  below.width = versions[0].width;
  below.height = versions[0].height;
  const [left, right] = ["left", "right"].map((side) => {
    const tag = document.createElement("span");
    tag.className = `tag ${side}`;
    return tag;
  });
  const range = document.createElement("input");
  Object.assign(range, { type: "range", min: 0, max: 100, step: 0.5, value: 50 });
  const grip = document.createElement("span");
  grip.className = "grip";
  grip.textContent = "⇔";
  grip.ariaHidden = "true";
  range.addEventListener("input", () => stack.style.setProperty("--at", `${range.value}%`));
  stack.append(below, above, left, right, range, grip);

  const choose = document.createElement("div");
  choose.className = "choose";
  const shown = { Left: 0, Right: versions.length - 2 };
  const draw = () => {
    above.src = versions[shown.Left].src;
    below.src = versions[shown.Right].src;
    above.alt = versions[shown.Left].alt;
    below.alt = versions[shown.Right].alt;
    left.textContent = versions[shown.Left].dataset.name;
    right.textContent = versions[shown.Right].dataset.name;
    range.ariaLabel = `How much of ${left.textContent} covers ${right.textContent}`;
    for (const button of choose.querySelectorAll("button")) {
      button.ariaPressed = String(shown[button.dataset.side] === Number(button.value));
    }
  };
  for (const side of ["Left", "Right"]) {
    const group = document.createElement("div");
    group.role = "group";
    group.ariaLabel = side;
    const label = document.createElement("span");
    label.textContent = side;
    group.append(label);
    versions.forEach((version, number) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", value: number, textContent: version.dataset.name });
      button.dataset.side = side;
      button.addEventListener("click", () => {
        shown[side] = number;
        draw();
      });
      group.append(button);
    });
    choose.append(group);
  }
  draw();
  comparison.querySelector(".versions").before(stack, choose);
}
