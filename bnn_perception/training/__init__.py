"""Training: from a folder of images to a model folder. The only part of the package that needs PyTorch.

============  =====================================================================
config        one YAML file: data, network, augmentation, the two stages
data          images and labels, the validation split, batches and their augmentation
networks      one topology, built three times: float twin, binary, binary in Brevitas
export        QONNX and the float twin's ONNX
train         the two stages, checkpoints, records, the model folder
============  =====================================================================
"""
