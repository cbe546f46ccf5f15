/* What the pages do besides being read: copy code, scroll by keyboard, search without a server. */
"use strict";

/* A page opened from disk may not read other pages: show the hits without their excerpts. */
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

/** Put a text on the clipboard, also where the browser has no clipboard for the page. */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
}

/** A button in the corner of each box of code. */
function addCopyButtons() {
  for (const pre of document.querySelectorAll("div.cell_input pre, div.highlight-sh pre")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.setAttribute("aria-label", "Copy this code");
    button.addEventListener("click", async () => {
      await copyText(pre.textContent.replace(/\n$/, ""));
      button.textContent = "Copied";
      button.classList.add("done");
      setTimeout(() => {
        button.textContent = "Copy";
        button.classList.remove("done");
      }, 1500);
    });
    const box = pre.closest("div.highlight");
    box.classList.add("copyable");
    box.append(button);
  }
}

const SCROLLING = "pre, div.formula, figure.map > div, .pst-scrollable-table-container";

/** Boxes that scroll can be reached by keyboard, and say what they are. */
function reachScrollingBoxes() {
  for (const box of document.querySelectorAll(SCROLLING)) {
    const scrolls = box.scrollWidth > box.clientWidth + 1;
    if (scrolls) {
      box.tabIndex = 0;
    } else {
      box.removeAttribute("tabindex");
    }
  }
}

/** On paper: everything unfolded, on white. */
function printWhole() {
  const folds = [...document.querySelectorAll("details:not([open])")];
  const { theme } = document.documentElement.dataset;
  for (const fold of folds) fold.open = true;
  document.documentElement.dataset.theme = "light";
  addEventListener("afterprint", () => {
    for (const fold of folds) fold.open = false;
    document.documentElement.dataset.theme = theme;
  }, { once: true });
}

function paragraph(text) {
  const element = document.createElement("p");
  element.className = "context";
  element.textContent = text;
  return element;
}

/** What a page is about, in place of an excerpt, where a page may not read others. */
const ABOUT = typeof DESCRIPTIONS === "undefined" ? {} : DESCRIPTIONS;

/** Each place once among the results of a search, and the first of them one tab away. */
function tidyResults() {
  const results = document.getElementById("search-results");
  if (!results) return;
  const seen = new Set();
  new MutationObserver((changes) => {
    for (const item of changes.flatMap((change) => [...change.addedNodes])) {
      const link = item.nodeName === "LI" && item.querySelector("a");
      if (!link) continue;
      const place = link.href.replace(/\?[^#]*/, "");
      if (seen.has(place)) item.remove();
      seen.add(place);
      const about = ABOUT[item.querySelector("a").getAttribute("href")];
      if (about && !DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY) item.append(paragraph(about));
    }
    const summary = results.querySelector(".search-summary");
    if (seen.size && !summary.hasAttribute("tabindex")) {
      summary.tabIndex = -1;
      summary.focus({ preventScroll: true });
    }
  }).observe(results, { childList: true, subtree: true });
}

tidyResults();
addEventListener("beforeprint", printWhole);
addCopyButtons();
reachScrollingBoxes();
addEventListener("resize", reachScrollingBoxes);
addEventListener("toggle", reachScrollingBoxes, true); // what was folded had no width
document.fonts.addEventListener("loadingdone", reachScrollingBoxes); // letters change theirs
