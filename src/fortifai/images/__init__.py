"""Images: a variational autoencoder, trained again and again."""
