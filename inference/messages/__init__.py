"""Exact message passing over discrete sites: factor graphs, elimination orders, cluster trees and their messages."""
