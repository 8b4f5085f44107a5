"""The Triton kernels, one topic a file. Importing any of them imports triton.

What all share: pictures lie in NHWC (a torch tensor of logical shape [N,C,H,W] in the channels_last format), one
program computes BM positions times BN channels, int32 sums are exact, and every float operation after them is rounded
once, in the order of the `vqc::` operators. Kernels are compiled with fusion of products and sums switched off.
"""
