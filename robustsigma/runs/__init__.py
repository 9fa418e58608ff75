"""What every long run shares: its folder, fingerprints, blocks of finished work, progress, processes and provenance."""
