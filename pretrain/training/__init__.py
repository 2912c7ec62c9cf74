"""Optimiser steps: what changes over a run, one step, the loop around it."""
