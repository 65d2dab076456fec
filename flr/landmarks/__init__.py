"""The ground floor: landmark schemes and the geometry of points and pixels. Imports nothing above it."""
