"""stages/sources"""
