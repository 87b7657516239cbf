// Tabs for the experiments. Without this script they simply follow one another.
(function () {
  var tabs = Array.prototype.slice.call(document.querySelectorAll("section.tab"));
  var strip = document.querySelector(".tabs");
  if (!strip || [0, 1].indexOf(tabs.length) !== -1) { return; }
  strip.setAttribute("role", "tablist");
  function show(chosen) {
    tabs.forEach(function (tab, i) {
      tab.hidden = i !== chosen;
      buttons[i].setAttribute("aria-selected", String(i === chosen));
      buttons[i].tabIndex = i === chosen ? 0 : -1;
    });
  }
  var buttons = tabs.map(function (tab, i) {
    var button = document.createElement("button");
    button.type = "button";
    button.textContent = tab.getAttribute("data-name");
    button.setAttribute("role", "tab");
    button.setAttribute("aria-controls", tab.id);
    tab.setAttribute("role", "tabpanel");
    button.addEventListener("click", function () { show(i); });
    button.addEventListener("keydown", function (event) {
      var step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) { return; }
      var next = (i + step + tabs.length) % tabs.length;
      show(next);
      buttons[next].focus();
    });
    strip.appendChild(button);
    return button;
  });
  show(0);
})();
