// Instances of one picture over HTTP, with nothing but Go's standard library.
package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
)

type object = map[string]any

func main() {
	picture, url, model := os.Args[1], os.Args[2], "mask2former"
	if len(os.Args) > 3 {
		model = os.Args[3]
	}
	if err := run(picture, url, model); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(path, url, model string) error {
	picture, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	header, err := json.Marshal(object{
		"parameters": object{"score_threshold": 0.6},
		"inputs": []object{{"name": "image", "datatype": "BYTES", "shape": []int{1, 1},
			"parameters": object{"binary_data_size": len(picture) + 4}}},
		"outputs": []object{{"name": "scores"}, {"name": "labels"}, {"name": "boxes"}, {"name": "areas"}},
	})
	if err != nil {
		return err
	}
	length := binary.LittleEndian.AppendUint32(nil, uint32(len(picture))) // of the element
	body := bytes.Join([][]byte{header, length, picture}, nil)
	request, err := http.NewRequest("POST", url+"/v2/models/"+model+"/infer", bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/octet-stream")
	request.Header.Set("Inference-Header-Content-Length", strconv.Itoa(len(header)))
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()

	var answer struct {
		Error   string
		Outputs []struct {
			Name string
			Data []float64
		}
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", answer.Error)
	}
	found := map[string][]float64{} // the outputs come in an order of their own
	for _, output := range answer.Outputs {
		found[output.Name] = output.Data
	}
	for i, score := range found["scores"] {
		box, _ := json.Marshal(found["boxes"][4*i : 4*i+4])
		fmt.Printf("%.3f %.0f %s %.0f\n", score, found["labels"][i], box, found["areas"][i])
	}
	return nil
}
