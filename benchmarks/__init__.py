import utils.start
