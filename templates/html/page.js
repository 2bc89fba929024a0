"use strict";
(() => {
  const root = document.documentElement;
  const radios = [...document.querySelectorAll('input[name="language"]')];
  const edition = (key) => document.querySelector(`.edition.${key}`);
  const current = () => radios.find((radio) => radio.checked).value;
  const numbered = (key) => [...edition(key).querySelectorAll("main [id]")];

  /* The heading that stands at the top of the window, and how far above or below it. */
  function place(key) {
    const above = numbered(key).filter((heading) => heading.getBoundingClientRect().top < 80);
    const heading = above.at(-1);
    return heading && { number: heading.id.split("-")[1], top: heading.getBoundingClientRect().top };
  }
  let shown = current();
  function show(key, where) {
    document.getElementById(`choose-${key}`).checked = true;
    shown = key;
    root.lang = edition(key).lang;
    document.title = document.querySelector(`label[for="choose-${key}"]`).dataset.title;
    const heading = where && document.getElementById(`${key}-${where.number}`);
    if (heading) window.scrollBy(0, heading.getBoundingClientRect().top - where.top);
  }
  let last;
  addEventListener("scroll", () => { last = place(shown); }, { passive: true });
  for (const radio of radios) radio.addEventListener("change", () => show(radio.value, last));

  function ofHash() {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (!target) return false;
    const key = ["zh", "en"].find((name) => edition(name).contains(target));
    if (key) { show(key); target.scrollIntoView(); }
    return Boolean(key);
  }
  if (!ofHash()) show((navigator.language || "zh").startsWith("zh") ? "zh" : "en");
  addEventListener("hashchange", ofHash);

  const narrow = matchMedia("(max-width: 67.99rem)");
  const fold = () => { for (const box of document.querySelectorAll(".contents")) box.open = !narrow.matches; };
  fold();
  narrow.addEventListener("change", fold);

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const shade = document.getElementById("shade");
  const isDark = () => (root.dataset.shade || (dark.matches ? "dark" : "light")) === "dark";
  const label = () => { shade.textContent = isDark() ? "☀" : "☾"; };
  shade.hidden = false;
  shade.addEventListener("click", () => { root.dataset.shade = isDark() ? "light" : "dark"; label(); });
  dark.addEventListener("change", label);
  label();
})();
