"""The names of losses, as --loss takes them. No torch here: flags are checked before it is imported."""

PIXELWISE = ("L1", "MSE", "Charbonnier", "FFT")
PERCEPTUAL = ("VGG22", "VGG54")  # features of VGG19, see `perceptual.py`
ADVERSARIAL = ("GAN", "RGAN", "WGAN_GP")  # with a discriminator of their own, see `adversarial.py`
LOSSES = (*PIXELWISE, *PERCEPTUAL, *ADVERSARIAL)
