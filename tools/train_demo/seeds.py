"""Which scenes are for training and which for judging, in one place: nothing is trained on what it is judged by.

Visitors draw scenes with small seeds, so those are held out.
"""

HELD_OUT = range(2_000)  # of the table of results
VALIDATION = range(2_000, 3_000)  # looked at during training, to choose between runs
FIRST_FOR_TRAINING = 1_000_000
TASK_STREAM, SIZE_STREAM = 2, 3  # of the dice that choose questions and size (pg2ref/demo/drawing/dice.py)
TRAINING_TASK_STREAM, ORDER_STREAM = 4, 5  # of those that ask during training, and that put batches in order
