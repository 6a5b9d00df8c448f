"""What a run will need before it is started: memory, time and money. Reads sizes, never weights; knows no Ray and no torch."""
