/* A typed number is kept, and shown, as finely as its input's `round` says: the front end keeps as much as a step has.
   Knows how the front end rounds; what a number is for, the nodes say. */

import { app } from "/scripts/app.js";

const CATEGORY = "Wan S2V";

/** Digits behind the point: of 1 none, of 0.05 two. */
export function digitsOf(step) {
    return Math.max(0, -Math.floor(Math.log10(step)));
}

/** As many digits as a value has behind the point, within limits. */
export function digitsNeeded(value, least, most) {
    let digits = least;
    while (digits < most && Number(value.toFixed(digits)) !== Number(value.toFixed(most))) digits++;
    return digits;
}

app.registerExtension({
    name: "wan_s2v.numbers",

    nodeCreated(node) {
        if (node.constructor.nodeData?.category !== CATEGORY) return;
        for (const widget of node.widgets ?? []) {
            const { step2: step, round } = widget.options ?? {};
            if (!(round > 0 && round < step)) continue;
            const [least, most] = [digitsOf(step), digitsOf(round)];
            Object.defineProperty(widget.options, "precision", {
                get: () => digitsNeeded(Number(widget.value), least, most), enumerable: true, configurable: true,
            });
        }
    },
});
