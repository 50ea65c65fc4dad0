"""What tests share: real MPI ranks, a real Slurm, and the proof that nothing is left behind."""
