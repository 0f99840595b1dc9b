"""What a run tells the people who watch it: TensorBoard, a progress line, speed and memory."""
