from training.conftest import rows_file as rows_file
from training.conftest import tiny_values as tiny_values
