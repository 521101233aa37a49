/* A new node that keeps finished clips keeps its seed too: after Cancel, Run goes on with them.
   Knows the front end's own widget that changes seeds, which begins with randomize; a workflow's own choice stays. */

import { app } from "/scripts/app.js";

const NODES = ["S2VLongVideo", "S2VDubVideo"];

app.registerExtension({
    name: "wan_s2v.seed",

    nodeCreated(node) {
        if (!NODES.includes(node.comfyClass)) return;
        const control = node.widgets?.find((widget) => widget.name === "control_after_generate");
        if (control) control.value = "fixed";
    },
});
