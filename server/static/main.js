// Connects the parts of the page and asks the server for its model.
import { startCanvas } from "./caption/canvas.js";
import { startElements } from "./caption/elements.js";
import { startExpansion } from "./caption/expand.js";
import { startFaults } from "./caption/faults.js";
import { startFiles } from "./caption/files.js";
import { startInspector } from "./caption/inspector.js";
import { startJson } from "./caption/json.js";
import { startValidation } from "./caption/validation.js";
import { startWhole } from "./caption/whole.js";
import { $ } from "./dom.js";
import { offerSource, startSource } from "./edit/source.js";
import { offerAdapters, startAdapters } from "./form/adapters.js";
import { startEstimate } from "./form/estimate.js";
import { startInput } from "./form/input.js";
import { showModel, startSettings } from "./form/settings.js";
import { startHistory } from "./history/gallery.js";
import { allowRestoring } from "./history/restore.js";
import { startGeneration } from "./result/generate.js";
import { say, startStage } from "./result/stage.js";
import { call } from "./server.js";

startInput();
startSettings();
startAdapters();
startStage();
startGeneration();
startHistory();
startSource();
startCanvas();
startElements();
startInspector();
startWhole();
startJson();
startFaults();
startValidation();
startFiles();
startExpansion();
startEstimate();

async function connect() {
  try {
    const [models, adapters] = await Promise.all([call("v1/models"), call("v1/adapters")]);
    showModel(models.data[0]);
    offerSource(models.data[0].edits);
    offerAdapters(adapters.data);
    allowRestoring();
  } catch (error) {
    $("model").textContent = "not connected";
    say(error.message, true);
  }
}

$("key").value = sessionStorage.getItem("key") ?? "";
$("key").addEventListener("change", () => {
  sessionStorage.setItem("key", $("key").value);
  connect();
});
connect();
