package workload

// WithTransient makes the reader look for systemd's transient units in another folder.
func (r *Reader) WithTransient(dir string) *Reader {
	r.transient = dir
	return r
}
