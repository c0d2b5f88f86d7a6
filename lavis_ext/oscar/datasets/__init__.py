"""Data sets on region features, Oscar's, VinVL's and volta's: texts as token ids, regions from stores."""
