"""One module for each dataset: its function ``read`` reads the publisher's files and returns a `FaceTable`.

`root` is the dataset's folder. With `strict` the first fault of a face stops the reading;
otherwise the face is skipped, named and counted (see `flr.data.table.check_faces`). A missing or damaged file, or one of
another form, is a `UserError`.
"""
