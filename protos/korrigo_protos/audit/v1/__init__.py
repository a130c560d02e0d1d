"""Generated from the .proto files of this folder by protos/generate.py."""
