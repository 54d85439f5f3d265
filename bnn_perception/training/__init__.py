"""Training: from a folder of images to a model folder. The only part of the package that needs PyTorch.

============  =====================================================================
config        one YAML file: data, network, augmentation, the stages
data          images and labels, the validation split, augmentation
networks      one topology, built three times: float twin, binary, binary in Brevitas
stages        the nets of the stages, their first weights, their optimizers
distributed   the device, and several processes
batches       batches on the device
train         one stage after the other, epoch by epoch
validation    accuracy, batch-norm re-estimation
run           the run folder: checkpoints and records
export        QONNX and the float twin's ONNX
publish       the model folder
study         variants and seeds of one configuration
============  =====================================================================
"""
