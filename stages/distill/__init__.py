"""stages/distill"""
