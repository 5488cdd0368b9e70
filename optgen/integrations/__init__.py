"""Integrations of generated optimizers into training libraries; each library is imported only when it is used."""
