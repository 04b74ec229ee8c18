"""stages/models"""
