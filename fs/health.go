package fs

func healthShow(r *request) ([]byte, error) {
	h, err := r.server.o.Collector.Health(r.ctx, r.vm)
	if err != nil {
		return nil, err
	}
	return line(sentence(h.String()))
}

func healthJSONShow(r *request) ([]byte, error) {
	h, err := r.server.o.Collector.Health(r.ctx, r.vm)
	if err != nil {
		return nil, err
	}
	return object([]pair{
		{key: "status", value: h.Status},
		{key: "reason", value: h.Reason},
		{key: "collected", value: seconds(h.Collected)},
	})
}
