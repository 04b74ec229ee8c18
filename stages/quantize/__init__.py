"""stages/quantize"""
