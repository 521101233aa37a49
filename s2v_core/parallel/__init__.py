"""One model on several devices: who shares what, the attention between them, and the weights."""
