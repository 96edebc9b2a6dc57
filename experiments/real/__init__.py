"""The paper's claims on pretrained instruction models: the English lab, and real domains."""
