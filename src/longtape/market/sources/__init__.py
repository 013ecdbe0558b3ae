"""market/sources"""
