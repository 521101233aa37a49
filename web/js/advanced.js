/* Rarer inputs of this pack's nodes stay out of sight until a node's menu says Show Advanced.
   Knows how the front end hides a widget; which inputs are rarer, the nodes say. */

import { app } from "/scripts/app.js";

const CATEGORY = "Wan S2V";

function rarer(node) {
    if (node.constructor.nodeData?.category !== CATEGORY) return [];
    return (node.widgets ?? []).filter((widget) => widget.options?.advanced);
}

function isUsed(node, { name, value }) {
    const { required, optional } = node.constructor.nodeData.input;
    const isLinked = node.inputs.some((input) => input.widget?.name === name && input.link != null);
    return isLinked || value !== { ...required, ...optional }[name][1].default;
}

app.registerExtension({
    name: "wan_s2v.advanced",

    /** The canvas looks at the widget's own flag, not at that of its options; a hidden widget still takes a row. */
    nodeCreated(node) {
        for (const widget of rarer(node)) {
            widget.advanced = true;
            widget.computeSize = () => [0, node.showAdvanced ? LiteGraph.NODE_WIDGET_HEIGHT : -4];   // -4: no row
        }
    },

    /** What a workflow sets is seen when it is opened, unless somebody has hidden it. */
    loadedGraphNode(node) {
        const someUsed = rarer(node).some((widget) => isUsed(node, widget));
        if (someUsed && node.showAdvanced === undefined) node.toggleAdvanced();
    },
});
