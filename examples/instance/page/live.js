// Shows what happens as it happens: on an event the page is fetched again and its
// main part replaced. Without this script the page shows the state at which it was
// loaded, and all of its forms work.
"use strict";

let pending = null;

// busy tells whether somebody is filling in a form, which must not vanish.
function busy() {
  const at = document.activeElement;
  if (at && at.closest("form") && at.matches("input, select")) return true;
  return [...document.querySelectorAll("main input:not([type=hidden])")].some((input) => input.value !== input.defaultValue);
}

async function refresh() {
  pending = null;
  if (busy()) return schedule();
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!answer.ok || busy()) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const focused = document.activeElement && document.activeElement.getAttribute("aria-label");
  for (const part of ["main", "footer", "#live"]) {
    document.querySelector(part).replaceWith(document.importNode(page.querySelector(part), true));
  }
  if (focused) {
    const again = document.querySelector(`[aria-label="${CSS.escape(focused)}"]`);
    if (again) again.focus();
  }
}

function schedule() {
  if (pending === null) pending = setTimeout(() => refresh().catch(() => {}), 500);
}

const events = new EventSource("/v1/events?after=" + (document.querySelector("main").dataset.last || ""));
for (const kind of ["device", "certificate", "running", "outcome", "batch", "published", "request"]) {
  events.addEventListener(kind, schedule);
}
events.addEventListener("error", () => { document.getElementById("live").textContent = "not connected"; });
events.addEventListener("open", schedule);
