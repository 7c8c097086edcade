"""Viewpoint learning (Actial, arXiv 2511.01618): which way did the camera go, and turn, between two photos?"""
