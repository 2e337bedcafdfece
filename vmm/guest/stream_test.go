package guest

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestNoMeetingLeft asks for the streams of a command on connections that cannot become streams.
func TestNoMeetingLeft(t *testing.T) {
	x := NewExecServer(func(*ExecRequest) (Command, error) {
		t.Error("a command was started")
		return nil, ErrBusy
	})
	for path, handler := range x.Streams() {
		body := strings.NewReader(`{"id":"` + path + `"}`)
		request := httptest.NewRequest(http.MethodPost, path, body)
		request.Header.Set("Upgrade", upgrade)
		response := httptest.NewRecorder() // has no Hijack
		handleStream(handler).ServeHTTP(response, request)
		if response.Code != http.StatusInternalServerError {
			t.Errorf("%s: status %d", path, response.Code)
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.meetings) != 0 {
		t.Errorf("%d meetings are left", len(x.meetings))
	}
}
