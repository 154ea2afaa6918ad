// Instances of one picture over HTTP, with the C++ standard library and POSIX sockets alone: every byte can be seen.
// A program of yours will take libcurl and a JSON library, or Triton's own C++ client; what is sent stays the same.
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

using Bytes = std::string;

Bytes read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + path);
    return {std::istreambuf_iterator<char>(file), {}};
}

Bytes exchange(const std::string& host, const std::string& port, const Bytes& request) {
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) throw std::runtime_error("no such host: " + host);
    const int connection = socket(found->ai_family, found->ai_socktype, found->ai_protocol);
    const bool connected = connect(connection, found->ai_addr, found->ai_addrlen) == 0;
    freeaddrinfo(found);
    if (!connected) throw std::runtime_error("no server at " + host + ":" + port);
    for (size_t sent = 0; sent < request.size();) {
        const ssize_t count = send(connection, request.data() + sent, request.size() - sent, MSG_NOSIGNAL);
        if (count <= 0) throw std::runtime_error("the server closed the connection");
        sent += count;
    }
    Bytes answer;
    char buffer[1 << 16];
    for (ssize_t count; (count = recv(connection, buffer, sizeof buffer, 0)) > 0;) answer.append(buffer, count);
    close(connection);
    return answer;  // whole: the request asked the server to close
}

// The text behind `key` and the first `mark` after it, up to one of `ends`.
std::string after(const std::string& text, const std::string& key, const std::string& mark, const char* ends) {
    const size_t start = text.find(mark, text.find(key));
    if (start == std::string::npos) throw std::runtime_error("no " + key + " in: " + text.substr(0, 300));
    return text.substr(start + mark.size(), text.find_first_of(ends, start + mark.size()) - start - mark.size());
}

// Outputs by name, as the server has them in memory: little endian, row by row.
std::map<std::string, Bytes> infer(const std::string& host, const std::string& port, const Bytes& picture,
                                   const std::string& model) {
    const std::vector<std::string> names = {"scores", "labels", "boxes", "areas"};
    std::string outputs;
    for (const auto& name : names)
        outputs += (outputs.empty() ? "" : ", ") + ("{\"name\": \"" + name + "\", \"parameters\": {\"binary_data\": true}}");
    const std::string json =
        "{\"parameters\": {\"score_threshold\": 0.6},\n"
        " \"inputs\": [{\"name\": \"image\", \"datatype\": \"BYTES\", \"shape\": [1, 1],"
        " \"parameters\": {\"binary_data_size\": " + std::to_string(picture.size() + 4) + "}}],\n"
        " \"outputs\": [" + outputs + "]}";
    Bytes length;  // of the element, the lowest byte first
    for (int shift = 0; shift < 32; shift += 8) length += static_cast<char>(picture.size() >> shift & 255);
    const Bytes answer = exchange(host, port,
        "POST /v2/models/" + model + "/infer HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n"
        "Content-Type: application/octet-stream\r\nInference-Header-Content-Length: " + std::to_string(json.size()) +
        "\r\nContent-Length: " + std::to_string(json.size() + 4 + picture.size()) + "\r\n\r\n" + json + length + picture);

    const size_t body = answer.find("\r\n\r\n") + 4;
    if (answer.find(" 200 ") > answer.find('\r')) throw std::runtime_error(answer.substr(body));
    const std::string head = answer.substr(0, body);
    const size_t json_size = std::stoul(after(head, "HTTP", "Inference-Header-Content-Length: ", "\r"));
    const std::string described = answer.substr(body, json_size);
    std::map<std::string, Bytes> found;
    // the data follow the JSON in the order in which it lists them, which is the server's own
    size_t position = body + json_size;
    for (size_t at = 0; (at = described.find("\"name\":\"", at)) != std::string::npos; ++at) {
        const std::string output = described.substr(at);
        const size_t size = std::stoul(after(output, "name", "\"binary_data_size\":", ",}"));
        found[after(output, "name", "\":\"", "\"")] = answer.substr(position, size);
        position += size;
    }
    return found;
}

template <typename T>
std::vector<T> array(const Bytes& data) {
    std::vector<T> values(data.size() / sizeof(T));
    std::memcpy(values.data(), data.data(), data.size());
    return values;
}

int main(int count, char** arguments) try {
    if (count != 4 && count != 5) throw std::runtime_error("usage: sockets PICTURE HOST PORT [MODEL]");
    const char* model = count == 5 ? arguments[4] : "mask2former";
    auto outputs = infer(arguments[2], arguments[3], read_file(arguments[1]), model);
    const auto scores = array<float>(outputs["scores"]), boxes = array<float>(outputs["boxes"]);
    const auto labels = array<int32_t>(outputs["labels"]), areas = array<int32_t>(outputs["areas"]);
    for (size_t i = 0; i < scores.size(); ++i) {
        const float* box = &boxes[4 * i];
        std::printf("%.3f %d [%g, %g, %g, %g] %d\n", scores[i], labels[i], box[0], box[1], box[2], box[3], areas[i]);
    }
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
