package guest

import (
	"encoding/json"
	"io"
	"log"
	"net/http"
	"time"
)

// maxBody bounds the bytes that either side reads of one message.
const maxBody = 4 << 20

func newServer(h http.Handler) *http.Server {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       10 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	s.SetKeepAlivesEnabled(false)
	return s
}

// Handler serves the protocol: requests become calls of agent, and streams have their handlers by
// path.
func Handler(agent Agent, streams map[string]StreamHandler) http.Handler {
	mux := http.NewServeMux()
	for path, h := range streams {
		mux.Handle("POST "+path, handleStream(h))
	}
	mux.HandleFunc("GET /ping", func(w http.ResponseWriter, r *http.Request) {
		v, err := agent.Ping(r.Context())
		answer(w, v, err)
	})
	mux.HandleFunc("GET /listeners", func(w http.ResponseWriter, r *http.Request) {
		v, err := agent.Listeners(r.Context())
		if v == nil {
			v = []Listener{}
		}
		answer(w, v, err)
	})
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, r *http.Request) {
		v, err := agent.Stats(r.Context())
		answer(w, v, err)
	})
	mux.HandleFunc("POST /configure", func(w http.ResponseWriter, r *http.Request) {
		var c Config
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&c); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer(w, struct{}{}, agent.Configure(r.Context(), c))
	})
	mux.HandleFunc("POST /poweroff", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, agent.PowerOff(r.Context()))
	})
	if f, ok := agent.(Freezer); ok {
		handleFreezer(mux, f)
	}
	if c, ok := agent.(Clock); ok {
		handleClock(mux, c)
	}
	return mux
}

// freezeRequest and freezeAnswer are the bodies of /freeze and /thaw.
type freezeRequest struct {
	Within int64 `json:"within_ms"`
}

type freezeAnswer struct {
	Count int  `json:"count"`
	Held  bool `json:"held"`
}

// maxFreeze bounds how long file systems stay frozen, for every request.
const maxFreeze = time.Minute

func handleFreezer(mux *http.ServeMux, f Freezer) {
	mux.HandleFunc("POST /freeze", func(w http.ResponseWriter, r *http.Request) {
		var asked freezeRequest
		body := http.MaxBytesReader(w, r.Body, 4<<10)
		if err := json.NewDecoder(body).Decode(&asked); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		within := min(max(0, time.Duration(asked.Within)*time.Millisecond), maxFreeze)
		n, err := f.Freeze(r.Context(), within)
		answer(w, freezeAnswer{Count: n}, err)
	})
	mux.HandleFunc("POST /thaw", func(w http.ResponseWriter, r *http.Request) {
		held, err := f.Thaw(r.Context())
		answer(w, freezeAnswer{Held: held}, err)
	})
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(b, '\n'))
}
