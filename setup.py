"""GAN-FFN is run from its clone: there is nothing to install but what it needs."""

raise SystemExit(
    "GAN-FFN is not a package to install: run it from its clone, after `pip install -r requirements.txt`, with "
    "`python train_IEMOCAP.py --demo`."
)
