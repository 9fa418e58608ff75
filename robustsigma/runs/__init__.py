"""What every long run shares: its folder, fingerprints, blocks of finished work, ranks, progress and provenance."""
