"""Training: from a folder of images to a model folder. The only part of the package that needs PyTorch.

============  =====================================================================
pipeline      the whole of a training, from data to a model folder
config        one YAML file: data, network, augmentation, the stages
fields        what a field of the configuration can be
kinds         the kinds of layers: fields, sizes, modules, ONNX nodes, a record each
data          images and labels, the validation split
augmentation  random changes of the images
modules       signs, binary weights, blocks; Brevitas' quantizers
networks      one topology, built three times: float twin, binary, binary in Brevitas
stages        the nets of the stages, their first weights, their optimizers
distributed   the device, and several processes
batches       batches on the device
train         one stage after the other, epoch by epoch
head          the head stage: cached bits of the frozen convolutions
validation    accuracy, batch-norm re-estimation
run           the run folder: checkpoints and records
curves        a picture of the records
progress      what the user sees meanwhile
export        QONNX and the float twin's ONNX
float_graph   the ONNX graph of a float twin
publish       the model, in memory and as a folder
study         variants and seeds of one configuration
digits        a small data set to try it on
============  =====================================================================
"""
