// Look at a request for inference before Triton does.
//
// Triton trusts the structure of a request: some structures end it, end a model's process, or occupy it for seconds.
// docs/triton-faults.md lists them. So only the structure that the documented protocol needs is let through. The contents
// of tensors and the values of parameters are not looked at: the models check them.
//
// njs runs inside nginx's own process, one request at a time. So the work for a request is bounded.

const MEMBERS = [
    'id', 'inputs', 'outputs', 'parameters', 'name', 'shape', 'datatype', 'data', 'binary_data', 'binary_data_size',
];
const MAX_NAMES = 200; // members of the JSON, or fields of the message: a request for every output has about 80
const MAX_STEPS = 16384; // bytes of JSON outside strings, or numbers of a message: about 15 ms
const MAX_DEPTH = 16;
const MAX_NAME_BYTES = 64;

const QUOTE = 0x22, COMMA = 0x2c, OPEN_ARRAY = 0x5b, BACKSLASH = 0x5c, CLOSE_ARRAY = 0x5d, OPEN = 0x7b, CLOSE = 0x7d;

// What nginx.conf calls

function http(r) {
    decide(r, '@triton_http', '@http_refused', checkHttp);
}

function grpc(r) {
    decide(r, '@triton_grpc', '@grpc_refused', checkMessage);
}

function isForPublicModel(r) {
    return isPublic(modelOf(r), r) ? '1' : '';
}

function isForModelOfExport(r) {
    return namesOf(r).some((name) => modelOf(r) === name || modelOf(r).startsWith(`${name}_`)) ? '1' : '';
}

function decide(r, accepted, refused, check) {
    const body = r.requestBuffer || Buffer.alloc(0); // whole in memory: client_body_buffer_size is client_max_body_size
    try {
        check(body, {names: 0, steps: 0, outputs: {}}, r);
    } catch (error) {
        if (error.name !== 'Refused') {
            throw error; // a fault of this script: nginx answers 500, and nothing passes unseen
        }
        r.variables.refusal = error.message;
        r.internalRedirect(refused);
        return;
    }
    r.internalRedirect(accepted);
}

function refuse(message) {
    const error = new Error(message);
    error.name = 'Refused';
    throw error;
}

// The models of an export NAME: clients may ask NAME, NAME_tensor and NAME_head. The others are its steps.

function namesOf(r) {
    return r.variables.m2f_names.split(' ').filter((name) => name !== '');
}

function modelOf(r) {
    const found = /^\/v2\/models\/([^/]+)/.exec(r.uri);
    return found ? found[1] : '';
}

function isPublic(model, r) {
    return namesOf(r).some((name) => [name, `${name}_tensor`, `${name}_head`].includes(model));
}

// Rules of both protocols

function countName(work) {
    work.names++;
    if (work.names > MAX_NAMES) {
        refuse(`more than ${MAX_NAMES} tensors, parameters and members`);
    }
}

function countStep(work) {
    work.steps++;
    if (work.steps > MAX_STEPS) {
        refuse(`more than ${MAX_STEPS} bytes beside the tensors: send tensors as binary data`);
    }
}

function checkMember(name) {
    if (!MEMBERS.includes(name)) {
        refuse(`${/^\w+$/.test(name) ? `'${name}'` : 'a member'} is not served here; allowed: ${MEMBERS.join(', ')}`);
    }
}

// Triton up to 26.04 keeps memory for an output that is asked for twice. Escapes would hide that.
function checkOutput(name, work) {
    if (!/^\w+$/.test(name) || work.outputs[name]) {
        refuse('an output has a strange name, or is asked for twice');
    }
    work.outputs[name] = true;
}

// Each element of a tensor takes at least one byte of the body. In shapes beyond that the product of the sides can wrap.
function checkShape(sides, body) {
    const elements = sides.reduce((product, side) => product * Math.max(side, 1), 1);
    if (elements > body.length) {
        refuse('a shape has more elements than the request has bytes');
    }
}

function text(body, from, to) {
    return body.subarray(from, Math.min(to, from + MAX_NAME_BYTES)).toString();
}

// HTTP: JSON, then the tensors as binary data

function checkHttp(body, work, r) {
    const stated = r.headersIn['Inference-Header-Content-Length'];
    if (stated === undefined) {
        checkJson(body, body.length, work);
    } else if (/^\d{1,9}$/.test(stated) && Number(stated) <= body.length) {
        checkJson(body, Number(stated), work); // 0: the body is the bytes of the only input
    } else {
        refuse('Inference-Header-Content-Length must be the number of bytes of JSON at the start of the body');
    }
}

function checkJson(body, end, work) {
    const inside = []; // around `at`, from the outside: null for an array, its current member for an object
    let expectsName = false;
    for (let at = 0; at < end; at++) {
        countStep(work);
        switch (body[at]) {
        case QUOTE: {
            const close = closingQuote(body, at + 1, end, work);
            if (expectsName) {
                countName(work);
                inside[inside.length - 1] = text(body, at + 1, close);
                if (inside.length !== 2 || inside[0] !== 'parameters') { // names of parameters are for the models
                    checkMember(inside[inside.length - 1]);
                }
                expectsName = false;
            } else if (inside.length === 3 && inside[0] === 'outputs' && inside[2] === 'name') {
                checkOutput(text(body, at + 1, close), work);
            }
            at = close;
            break;
        }
        case OPEN_ARRAY:
            if (inside[inside.length - 1] === 'shape') {
                at = checkJsonShape(body, at + 1, end);
                break;
            }
            // fall through
        case OPEN:
            expectsName = body[at] === OPEN;
            inside.push(expectsName ? '' : null);
            if (inside.length > MAX_DEPTH) {
                refuse(`JSON nested deeper than ${MAX_DEPTH}`);
            }
            break;
        case CLOSE:
        case CLOSE_ARRAY:
            inside.pop();
            if (inside.length === 0) {
                return; // Triton's parser stops here too
            }
            expectsName = false;
            break;
        case COMMA:
            expectsName = inside.length > 0 && inside[inside.length - 1] !== null;
        }
    }
}

function closingQuote(body, from, end, work) {
    for (let at = from; ; at++) {
        countStep(work);
        at = body.indexOf(QUOTE, at);
        if (at < 0 || at >= end) {
            refuse('a string of the JSON has no end');
        }
        let backslashes = 0;
        while (at - backslashes > from && body[at - backslashes - 1] === BACKSLASH) {
            countStep(work);
            backslashes++;
        }
        if (backslashes % 2 === 0) {
            return at;
        }
    }
}

function checkJsonShape(body, from, end) {
    const close = body.indexOf(CLOSE_ARRAY, from);
    const sides = close >= from && close < end ? text(body, from, close).split(',') : [];
    if (close - from > MAX_NAME_BYTES || !sides.every((side) => /^\s*\d*\s*$/.test(side))) {
        refuse('a shape must be a few whole numbers from 0 up');
    }
    checkShape(sides.map(Number), body);
    return close;
}

// gRPC: five bytes of a frame, then a ModelInferRequest (grpc_service.proto). Fields that it does not have are refused:
// a tag of too many bits is read differently by different parsers.

function checkMessage(body, work, r) {
    if (body.length < 5 || body[0] !== 0 || 5 + body.readUInt32BE(1) !== body.length) {
        refuse('one uncompressed message is expected');
    }
    eachField(body, 5, body.length, work, {
        1: (from, to) => isPublic(text(body, from, to), r) || refuse('this model is not served here'),
        2: skip, // version
        3: skip, // id
        4: skip, // a parameter of the request: for the models
        5: (from, to) => checkInput(body, from, to, work),
        6: (from, to) => eachField(body, from, to, work, {
            1: (start, stop) => checkOutput(text(body, start, stop), work),
            2: (start, stop) => checkParameter(body, start, stop, work),
        }),
        7: skip, // bytes of a tensor
    });
}

function skip() {}

function checkInput(body, from, to, work) {
    const sides = [];
    eachField(body, from, to, work, {
        1: skip, // name
        2: skip, // datatype
        3: (start, stop) => {
            for (let at = start; at < stop;) {
                const side = varint(body, at, stop, work);
                sides.push(side.value);
                at = side.next;
            }
        },
        4: (start, stop) => checkParameter(body, start, stop, work),
        5: skip, // elements that are not in field 7
    });
    checkShape(sides, body);
}

function checkParameter(body, from, to, work) {
    eachField(body, from, to, work, {1: (start, stop) => checkMember(text(body, start, stop)), 2: skip});
}

// Call the handler of each field with the start and the end of its content.
function eachField(body, from, to, work, handlers) {
    for (let at = from; at < to;) {
        countName(work);
        const tag = varint(body, at, to, work), number = varint(body, tag.next, to, work);
        const handler = handlers[Math.floor(tag.value / 8)], kind = tag.value % 8;
        if (handler === undefined || (kind !== 0 && kind !== 2)) {
            refuse('the message has a field that a ModelInferRequest does not have');
        }
        const start = kind === 0 ? tag.next : number.next;
        at = kind === 0 ? number.next : number.next + number.value;
        if (at > to) {
            refuse('the message ends within a field');
        }
        handler(start, at);
    }
}

function varint(body, from, to, work) {
    let value = 0, factor = 1;
    for (let at = from; at < Math.min(to, from + 10); at++) {
        countStep(work);
        value += (body[at] % 128) * factor;
        factor *= 128;
        if (body[at] < 128) {
            return {value: value, next: at + 1};
        }
    }
    return refuse('the message has a number without an end');
}

// An error of gRPC is a response of headers alone. With a length nginx ends the response there, as grpc_pass does.
function endErrors(r) {
    if (r.headersOut['grpc-status'] !== undefined) {
        r.headersOut['Content-Length'] = '0';
    }
}

export default {http, grpc, isForPublicModel, isForModelOfExport, endErrors};
