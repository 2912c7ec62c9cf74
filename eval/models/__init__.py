"""Backbones: what turns images into features, from exports, timm, official weights and floors."""
