"""What a training run will take, before it is started: memory, time, money, and what may go wrong.

Everything is arithmetic on shapes: no weights are made, and no GPU is needed to plan for sixteen thousand of them.
"""
