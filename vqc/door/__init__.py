"""The rooms behind `torch.compile(model, backend="vqc")`; `vqc.backend` is the door itself."""
