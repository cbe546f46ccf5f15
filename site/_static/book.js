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

addCopyButtons();
reachScrollingBoxes();
addEventListener("resize", reachScrollingBoxes);
